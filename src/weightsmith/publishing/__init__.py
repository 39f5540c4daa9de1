"""Putting what was made in its place: staged beside it, durable, whole, and never over what must not be lost."""

from __future__ import annotations

from weightsmith.publishing.earlier import Earlier as Earlier
from weightsmith.publishing.earlier import check_free as check_free
from weightsmith.publishing.files import publish_file as publish_file
from weightsmith.publishing.files import write_file as write_file
from weightsmith.publishing.safe_places import check_place as check_place
from weightsmith.publishing.staging import StagingFolder as StagingFolder
