"""Statistics of a model over data: what passes its modules, and gradients of its losses, summed up in one run.

Items run in batches without padding, the network whole or block by block. What comes out are statistics files, which
recipes name beside their models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.statistics.collected import Collected as Collected
    from weightsmith.statistics.collected import CollectedFile as CollectedFile
    from weightsmith.statistics.collecting import collect as collect
    from weightsmith.statistics.data_files import DataChoice as DataChoice
    from weightsmith.statistics.data_files import files_of_data as files_of_data
    from weightsmith.statistics.data_files import is_suite_file as is_suite_file
    from weightsmith.statistics.data_files import read_data as read_data
    from weightsmith.statistics.logit_distance import logit_distances as logit_distances
    from weightsmith.statistics.merged_inputs import collect_through as collect_through
    from weightsmith.statistics.samples import Sample as Sample
    from weightsmith.statistics.samples import SampleBatch as SampleBatch
    from weightsmith.statistics.samples import Samples as Samples
    from weightsmith.statistics.samples import batched as batched
    from weightsmith.statistics.samples import counted_labels as counted_labels
    from weightsmith.statistics.samples import unpadded as unpadded
    from weightsmith.statistics.text_samples import every_token as every_token
    from weightsmith.statistics.text_samples import next_tokens as next_tokens
    from weightsmith.statistics.text_samples import one_class as one_class
    from weightsmith.statistics.wanted import PER as PER
    from weightsmith.statistics.wanted import WHAT as WHAT
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Collected": "weightsmith.statistics.collected",
            "CollectedFile": "weightsmith.statistics.collected",
            "DataChoice": "weightsmith.statistics.data_files",
            "PER": "weightsmith.statistics.wanted",
            "Sample": "weightsmith.statistics.samples",
            "SampleBatch": "weightsmith.statistics.samples",
            "Samples": "weightsmith.statistics.samples",
            "WHAT": "weightsmith.statistics.wanted",
            "every_token": "weightsmith.statistics.text_samples",
            "next_tokens": "weightsmith.statistics.text_samples",
            "one_class": "weightsmith.statistics.text_samples",
            "batched": "weightsmith.statistics.samples",
            "counted_labels": "weightsmith.statistics.samples",
            "files_of_data": "weightsmith.statistics.data_files",
            "is_suite_file": "weightsmith.statistics.data_files",
            "read_data": "weightsmith.statistics.data_files",
            "collect": "weightsmith.statistics.collecting",
            "logit_distances": "weightsmith.statistics.logit_distance",
            "collect_through": "weightsmith.statistics.merged_inputs",
            "unpadded": "weightsmith.statistics.samples",
        },
    )
