"""Studies: arms that are chains of trainings, run at an equal budget for several seeds and compared with a baseline.

schema.py reads a study file, plan.py makes its members and finds every mistake, run_local.py runs them here and
run_slurm.py on Slurm, results.py is the arithmetic and reporting.py the table, JSON and picture.
"""
