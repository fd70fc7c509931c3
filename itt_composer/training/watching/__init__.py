"""What a run shows of itself while it trains: lines, logs and statistics."""
