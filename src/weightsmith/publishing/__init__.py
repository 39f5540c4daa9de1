"""Putting what was made in its place: staged beside it, durable, whole, and never over what must not be lost.

One rule says what an output may replace, for folders and for files, of every command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.publishing.earlier import Earlier as Earlier
    from weightsmith.publishing.earlier import Problem as Problem
    from weightsmith.publishing.earlier import check_free as check_free
    from weightsmith.publishing.files import StagedFile as StagedFile
    from weightsmith.publishing.files import check_file as check_file
    from weightsmith.publishing.files import publish_file as publish_file
    from weightsmith.publishing.files import staged_file as staged_file
    from weightsmith.publishing.files import staged_name as staged_name
    from weightsmith.publishing.files import write_file as write_file
    from weightsmith.publishing.records import FOREIGN as FOREIGN
    from weightsmith.publishing.records import MANIFEST as MANIFEST
    from weightsmith.publishing.records import MANIFEST_KEY as MANIFEST_KEY
    from weightsmith.publishing.records import Recorded as Recorded
    from weightsmith.publishing.records import file_digest as file_digest
    from weightsmith.publishing.records import file_names as file_names
    from weightsmith.publishing.records import header_digest as header_digest
    from weightsmith.publishing.records import manifest_problem as manifest_problem
    from weightsmith.publishing.records import unrecorded_problem as unrecorded_problem
    from weightsmith.publishing.safe_places import SUFFIX as SUFFIX
    from weightsmith.publishing.safe_places import check_place as check_place
    from weightsmith.publishing.safe_places import refuse_inputs as refuse_inputs
    from weightsmith.publishing.safe_places import refuse_recorded as refuse_recorded
    from weightsmith.publishing.sealing import sealed as sealed
    from weightsmith.publishing.sealing import unsealed as unsealed
    from weightsmith.publishing.seals import is_sealed_as as is_sealed_as
    from weightsmith.publishing.seals import sealed_json as sealed_json
    from weightsmith.publishing.seals import with_seal as with_seal
    from weightsmith.publishing.seals import write_sealed_tensors as write_sealed_tensors
    from weightsmith.publishing.staging import LOCK as LOCK
    from weightsmith.publishing.staging import StagingFolder as StagingFolder
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Earlier": "weightsmith.publishing.earlier",
            "FOREIGN": "weightsmith.publishing.records",
            "unrecorded_problem": "weightsmith.publishing.records",
            "LOCK": "weightsmith.publishing.staging",
            "MANIFEST": "weightsmith.publishing.records",
            "MANIFEST_KEY": "weightsmith.publishing.records",
            "Problem": "weightsmith.publishing.earlier",
            "Recorded": "weightsmith.publishing.records",
            "SUFFIX": "weightsmith.publishing.safe_places",
            "StagedFile": "weightsmith.publishing.files",
            "StagingFolder": "weightsmith.publishing.staging",
            "check_file": "weightsmith.publishing.files",
            "check_free": "weightsmith.publishing.earlier",
            "check_place": "weightsmith.publishing.safe_places",
            "file_digest": "weightsmith.publishing.records",
            "file_names": "weightsmith.publishing.records",
            "header_digest": "weightsmith.publishing.records",
            "is_sealed_as": "weightsmith.publishing.seals",
            "manifest_problem": "weightsmith.publishing.records",
            "publish_file": "weightsmith.publishing.files",
            "refuse_inputs": "weightsmith.publishing.safe_places",
            "refuse_recorded": "weightsmith.publishing.safe_places",
            "sealed": "weightsmith.publishing.sealing",
            "sealed_json": "weightsmith.publishing.seals",
            "staged_file": "weightsmith.publishing.files",
            "staged_name": "weightsmith.publishing.files",
            "unsealed": "weightsmith.publishing.sealing",
            "with_seal": "weightsmith.publishing.seals",
            "write_file": "weightsmith.publishing.files",
            "write_sealed_tensors": "weightsmith.publishing.seals",
        },
    )
