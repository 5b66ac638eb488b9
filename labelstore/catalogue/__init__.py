"""The store's SQL: images, teachers, plans, label sets, masks, leases and the ledger of committed shards."""

from labelstore.catalogue.catalogue import Catalogue as Catalogue
from labelstore.catalogue.records import ImageRow as ImageRow
from labelstore.catalogue.records import LabelSetRow as LabelSetRow
from labelstore.catalogue.records import Lease as Lease
from labelstore.catalogue.records import MaskRow as MaskRow
from labelstore.catalogue.records import PlanRow as PlanRow
from labelstore.catalogue.records import ResultRow as ResultRow
from labelstore.catalogue.records import RunRow as RunRow
from labelstore.catalogue.records import ShardRow as ShardRow
from labelstore.catalogue.records import TeacherRow as TeacherRow
from labelstore.catalogue.schema import FORMAT_VERSION as FORMAT_VERSION
