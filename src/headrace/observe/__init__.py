"""What is watched: statistics of inputs and predictions."""
