"""Studies: many trainings at an equal budget, for several seeds, as chains (arms) or at every point of a grid.

loading.py reads a study file, whose keys are in schema.py; plan.py makes the members of arms and grid.py those of a
grid; both find every mistake (members.py). run_local.py runs them here and run_slurm.py on Slurm. Of arms, results.py
is the arithmetic and reporting.py the page. Of grids, grid_finetuning.py is what follows each training; laws.py and
optimum.py are the arithmetic, scaling.py, stability.py, transfer.py and minutes.py apply it; scaling_page.py,
stability_page.py, transfer.py and minutes.py make the pages. A page is tables, pictures and numbers; page.py writes it.
"""
