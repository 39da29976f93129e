"""What the process has imported and parsed from which `Cli.launch` forks runs: a fork needs no seconds for it."""

from importlib import import_module

from classifier_lens.runner.configuration.compose import compose_config
from tests.hydra_cache import cached_compositions

for module in (
    "models.captioner.captioner",
    "models.classifier.loaders.shipped",
    "models.classifier.loaders.user_network",
    "models.segmenter.clipseg",
    "runner.command",
    "tasks.uvce",
):
    import_module(f"classifier_lens.{module}")
cached_compositions().__enter__()  # for the forks, which never leave it
compose_config([])
