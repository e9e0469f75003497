"""What was in production when and why, as a table and a page, and the drill of going back.

The history itself is :mod:`ad_pipeline.serving.production`'s to read and
:mod:`ad_pipeline.serving.promotion`'s to write; here it is held beside the decisions that were
logged, and a rollback is tried out on a copy.
"""
