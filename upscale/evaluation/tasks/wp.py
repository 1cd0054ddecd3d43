"""wp: English Wikipedia."""

from upscale.evaluation.tasks.text import TextTask

WP = TextTask(
    name="wp",
    definition="English Wikipedia as XML, as in enwik8",
    sha256="d18e161410cbdea841354e9f6cad3692b7f4afd9e38ee67088025ebe85cbdcd4",
)
