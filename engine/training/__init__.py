"""What every training shares: workers, order, schedule, checkpoints and the log."""
