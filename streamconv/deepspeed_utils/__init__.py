"""The commands with the names and options of DeepSpeed's scripts that make one model of a run's partitions."""
