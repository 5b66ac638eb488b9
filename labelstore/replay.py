"""Pixels of images and crops under their public name; `labelstore.cropping.replay` makes them."""

from labelstore.cropping.replay import centre_crops, decode, replay, replay_many

__all__ = ["centre_crops", "decode", "replay", "replay_many"]
