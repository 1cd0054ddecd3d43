"""Starting runs and seeing that they end: the supervisor of one machine, signals, and what runs beside a Slurm job."""
