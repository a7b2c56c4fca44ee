"""Failure prediction by itself: models, rules and their state over time, on arrays.

It knows nothing of the network, of files of a site or of the time of day: the live monitor and a replay of archives
(`failavoid backtest`) feed the same `watch.Watch`.
"""
