"""The questions, one module each: pure functions over a graph."""
