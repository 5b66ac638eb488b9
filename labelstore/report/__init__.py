"""Pictures of a store, and the page that holds them together: what labels look like before they are trained on."""

from labelstore.report.page import Page, write_page
from labelstore.report.plots import PLOTS, plot
from labelstore.report.shown_image import ShownCrop, draw_image, shown_crops

__all__ = ["PLOTS", "Page", "ShownCrop", "draw_image", "plot", "shown_crops", "write_page"]
