"""Images, sound and video: what a conversation holds of them, and how they are decoded.

Serving decodes what requests bring; training will decode what rows name. Where a file or an address may be read at all
is decided before, by api/media_sources.py.
"""
