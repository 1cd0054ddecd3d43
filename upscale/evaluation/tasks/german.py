"""german: a book in German, of which no excerpt is shipped."""

from upscale.evaluation.tasks.text import TextTask

GERMAN = TextTask(name="german", definition="Die Frauenfrage by Lily Braun, in German (Project Gutenberg 14075)")
