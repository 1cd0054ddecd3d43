"""What runs beside training: the questions of the scripts in slurm/, follow-up jobs, a run's status."""
