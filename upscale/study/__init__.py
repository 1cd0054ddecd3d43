"""Studies: many trainings at an equal budget, for several seeds, as chains (arms) or at every point of a grid.

schema.py reads a study file; plan.py makes the members of arms and grid.py those of a grid; both find every mistake
(members.py). run_local.py runs them here and run_slurm.py on Slurm. Of arms, results.py is the arithmetic and
reporting.py the table, JSON and picture. Of grids, grid_finetuning.py is what follows each training; laws.py and
optimum.py are the arithmetic, scaling.py and transfer.py apply it; scaling_page.py, transfer.py and grid_reporting.py
make the pages of tables, pictures and numbers that page.py writes.
"""
