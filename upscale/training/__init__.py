"""What train.py is made of: the train step, what it logs, and what watches over it."""
