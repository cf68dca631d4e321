"""Does B derive from A, judged by what they say? Three levels, and controls outside A's lineage (outputs.md 5.2).

`agreement` and `alleles` score two models on the same prompts, `signflip` compares scores prompt by prompt, `controls` says
who may stand where, `levels` ranks a suspect among the controls, `judgement` gives the verdict, `derivation` is the public
test and `screening` asks it of several candidate parents.
"""
