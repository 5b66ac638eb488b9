"""Scratch folders: where a node lays labels out flat, for one run or for every later one."""
