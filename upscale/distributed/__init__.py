"""The ranks of one run: who they are, their collectives, and what is said when one of them is lost."""
