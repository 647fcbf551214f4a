"""What a run will cost, before it is started: memory by phase, disk, counts and time, without loading weights."""
