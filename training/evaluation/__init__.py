"""What the evaluator computes."""
