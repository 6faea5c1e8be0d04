"""What osmosis is measured against, and the twins that its answers are compared with."""
