"""Verb `annotate`: people judge a sample of labelled steps, and the labels are measured against what they say.

`drawing` chooses what is asked, `page` and `label_studio` ask, `answers` reads what people said, `freezing` reports.
"""
