"""text: whatever text the user has prepared."""

from upscale.evaluation.tasks.text import TextTask

TEXT = TextTask(name="text", definition="the text that `upscale prepare text` was given")
"""Only the held-out split of a corpus in `evaluation.data_dir`, or a file there: nothing is shipped."""
