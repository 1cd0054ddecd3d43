"""Optimizers, with rates from the roles of parameters and the schedule."""
