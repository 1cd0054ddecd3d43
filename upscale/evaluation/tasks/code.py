"""code: minified JavaScript."""

from upscale.evaluation.tasks.text import TextTask

CODE = TextTask(
    name="code",
    definition="D3.js, minified JavaScript",
    sha256="f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
)
