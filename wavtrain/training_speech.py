"""Where a training script gets its speech: prepared already, or prepared now by one process while the others wait."""

from dataclasses import dataclass

from accelerate import Accelerator

from wavtrain.reporting.summaries import preparation_summary
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import already_prepared, cache_folder, link_split, prepared_speech
from wavtrain.speech.prepared_directory import PreparedSpeech


@dataclass(frozen=True)
class CacheOptions:
    """How the corpus is prepared, and where it is kept. The fields are flags of the same names."""

    validation_split_percentage: float | None
    preprocessing_num_workers: int
    overwrite_cache: bool
    cache_dir: str | None
    train_cache_file_name: str | None = None
    validation_cache_file_name: str | None = None


def training_speech(
    corpus: CorpusOptions, limits: ClipLimits, options: CacheOptions, accelerator: Accelerator
) -> PreparedSpeech:
    """What --dataset_name names if that is a prepared directory, otherwise prepared where later runs find it."""
    percentage, cache_dir = options.validation_split_percentage, options.cache_dir
    prepared = already_prepared(corpus, limits, percentage) or prepared_speech(
        corpus, limits, options.train_cache_file_name or cache_folder(cache_dir, corpus, limits, percentage),
        validation_percentage=percentage, num_workers=options.preprocessing_num_workers, cache_dir=cache_dir,
        overwrite=options.overwrite_cache, may_prepare=accelerator.is_local_main_process)
    if options.validation_cache_file_name and accelerator.is_local_main_process:
        link_split(prepared, "validation", options.validation_cache_file_name)
    if accelerator.is_main_process:
        print(preparation_summary(prepared.folder, prepared.report))
    return prepared
