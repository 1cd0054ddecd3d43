"""What the scripts in slurm/ call: questions about a config or a run, and jobs that follow a running one."""
