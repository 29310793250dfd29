"""Questions of evaluations, and what evaluations leave."""
