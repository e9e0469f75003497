"""What is wrong now: where it is found, how it is told, and to whom.

Findings are made elsewhere, in the tables and files of every room; here they are only read, each by
one small source, and put into one table with the line to act. What acts by itself is a sensor.
"""
