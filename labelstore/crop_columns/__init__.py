"""What can be said of one crop, as named columns, and conditions over them; read slab by slab."""

from labelstore.crop_columns.columns import COLUMNS, Column, check_columns
from labelstore.crop_columns.condition import Condition
from labelstore.crop_columns.slab import CropSlab, names_of
from labelstore.crop_columns.text import Text

__all__ = ["COLUMNS", "Column", "Condition", "CropSlab", "Text", "check_columns", "names_of"]
