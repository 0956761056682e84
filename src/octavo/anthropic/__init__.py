"""Anthropic's formats for text: the bodies of ``/v1/messages`` and its answers and events. Values only, no torch."""
