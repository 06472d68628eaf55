"""The dialect of the 2020 code: translation only.

Names, arguments and results are those of "Inverting Gradients" (2020); the work is done by the rest of the
package. What was a defect is fixed, and each fix is listed in the documentation, `legacy`.
"""
