"""Keeping a store whole: verify, audit, repair, drop, gc, freeze, migrate."""
