"""Studies: arms that are chains of trainings, run at an equal budget for several seeds and compared with a baseline.

tree.py reads a study file, plan.py makes its members and finds every mistake, running.py runs them here and jobs.py
on Slurm, results.py is the arithmetic and writing.py the table, JSON and picture.
"""
