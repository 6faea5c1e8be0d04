"""The paper's evaluation on real systems: one module per mechanism, one runner."""
