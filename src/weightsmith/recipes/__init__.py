"""Recipes: `recipes.language` is what may be written, `recipes.resolution` what it means for checkpoints at hand.

`load` reads a file strictly, `override` changes numbers of it, and `resolution.resolve` gives the formula of every
output tensor from headers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.recipes.language.adapter_form import AdapterForm as AdapterForm
    from weightsmith.recipes.language.document import MOST_BYTES as MOST_BYTES
    from weightsmith.recipes.language.document import DocumentKind as DocumentKind
    from weightsmith.recipes.language.document import Place as Place
    from weightsmith.recipes.language.document import YamlDocument as YamlDocument
    from weightsmith.recipes.language.document import is_encodable as is_encodable
    from weightsmith.recipes.language.document import parse_documents as parse_documents
    from weightsmith.recipes.language.document_parts import rewritten as rewritten
    from weightsmith.recipes.language.expressions import Expression as Expression
    from weightsmith.recipes.language.expressions import checkpoint as checkpoint
    from weightsmith.recipes.language.expressions import free as free
    from weightsmith.recipes.language.free_recipes import has_free as has_free
    from weightsmith.recipes.language.mentioned import merged_references as merged_references
    from weightsmith.recipes.language.mentioned import other_references as other_references
    from weightsmith.recipes.language.model_references import is_recipe_file as is_recipe_file
    from weightsmith.recipes.language.model_references import reference_data as reference_data
    from weightsmith.recipes.language.modifier_calls import Modification as Modification
    from weightsmith.recipes.language.other_documents import (
        refuse_other_kinds as refuse_other_kinds,
    )
    from weightsmith.recipes.language.overrides import override as override
    from weightsmith.recipes.language.recipe import Recipe as Recipe
    from weightsmith.recipes.language.recipe import load as load
    from weightsmith.recipes.language.schema import BundleForm as BundleForm
    from weightsmith.recipes.language.schema import RecipeDocument as RecipeDocument
    from weightsmith.recipes.language.value_files import read_values as read_values
    from weightsmith.recipes.language.without import without as without
    from weightsmith.recipes.resolution.boundary_findings import LayerBoundary as LayerBoundary
    from weightsmith.recipes.resolution.boundary_findings import LayerOrigin as LayerOrigin
    from weightsmith.recipes.resolution.boundary_findings import (
        layer_boundaries as layer_boundaries,
    )
    from weightsmith.recipes.resolution.boundary_findings import layer_origins as layer_origins
    from weightsmith.recipes.resolution.boundary_findings import repeated_layers as repeated_layers
    from weightsmith.recipes.resolution.combine import coarsest as coarsest
    from weightsmith.recipes.resolution.filling import OpenRecipe as OpenRecipe
    from weightsmith.recipes.resolution.filling import complete as complete
    from weightsmith.recipes.resolution.filling import fill as fill
    from weightsmith.recipes.resolution.filling import open_recipe as open_recipe
    from weightsmith.recipes.resolution.formula import Assertion as Assertion
    from weightsmith.recipes.resolution.formula import Cast as Cast
    from weightsmith.recipes.resolution.formula import Formula as Formula
    from weightsmith.recipes.resolution.formula import Leaf as Leaf
    from weightsmith.recipes.resolution.formula import MeasuredLeaves as MeasuredLeaves
    from weightsmith.recipes.resolution.formula import Merge as Merge
    from weightsmith.recipes.resolution.formula import OutputTensor as OutputTensor
    from weightsmith.recipes.resolution.formula import Resolved as Resolved
    from weightsmith.recipes.resolution.formula import Same as Same
    from weightsmith.recipes.resolution.formula import Sum as Sum
    from weightsmith.recipes.resolution.formula import distinct_leaves as distinct_leaves
    from weightsmith.recipes.resolution.formula import formulas_in as formulas_in
    from weightsmith.recipes.resolution.formula import merges_in as merges_in
    from weightsmith.recipes.resolution.free_formulas import Values as Values
    from weightsmith.recipes.resolution.free_formulas import numbers_of as numbers_of
    from weightsmith.recipes.resolution.free_formulas import with_numbers as with_numbers
    from weightsmith.recipes.resolution.masks import MaskNumbers as MaskNumbers
    from weightsmith.recipes.resolution.masks import file_of_values as file_of_values
    from weightsmith.recipes.resolution.masks import require_within as require_within
    from weightsmith.recipes.resolution.resolve import Opener as Opener
    from weightsmith.recipes.resolution.resolve import opener_of as opener_of
    from weightsmith.recipes.resolution.resolve import resolve as resolve
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "AdapterForm": "weightsmith.recipes.language.adapter_form",
            "Assertion": "weightsmith.recipes.resolution.formula",
            "BundleForm": "weightsmith.recipes.language.schema",
            "Cast": "weightsmith.recipes.resolution.formula",
            "DocumentKind": "weightsmith.recipes.language.document",
            "Expression": "weightsmith.recipes.language.expressions",
            "Formula": "weightsmith.recipes.resolution.formula",
            "LayerOrigin": "weightsmith.recipes.resolution.boundary_findings",
            "Leaf": "weightsmith.recipes.resolution.formula",
            "MOST_BYTES": "weightsmith.recipes.language.document",
            "MeasuredLeaves": "weightsmith.recipes.resolution.formula",
            "Merge": "weightsmith.recipes.resolution.formula",
            "Modification": "weightsmith.recipes.language.modifier_calls",
            "OpenRecipe": "weightsmith.recipes.resolution.filling",
            "Opener": "weightsmith.recipes.resolution.resolve",
            "OutputTensor": "weightsmith.recipes.resolution.formula",
            "Place": "weightsmith.recipes.language.document",
            "Recipe": "weightsmith.recipes.language.recipe",
            "RecipeDocument": "weightsmith.recipes.language.schema",
            "Resolved": "weightsmith.recipes.resolution.formula",
            "Same": "weightsmith.recipes.resolution.formula",
            "LayerBoundary": "weightsmith.recipes.resolution.boundary_findings",
            "Sum": "weightsmith.recipes.resolution.formula",
            "Values": "weightsmith.recipes.resolution.free_formulas",
            "YamlDocument": "weightsmith.recipes.language.document",
            "checkpoint": "weightsmith.recipes.language.expressions",
            "coarsest": "weightsmith.recipes.resolution.combine",
            "complete": "weightsmith.recipes.resolution.filling",
            "distinct_leaves": "weightsmith.recipes.resolution.formula",
            "fill": "weightsmith.recipes.resolution.filling",
            "formulas_in": "weightsmith.recipes.resolution.formula",
            "free": "weightsmith.recipes.language.expressions",
            "has_free": "weightsmith.recipes.language.free_recipes",
            "is_encodable": "weightsmith.recipes.language.document",
            "is_recipe_file": "weightsmith.recipes.language.model_references",
            "layer_origins": "weightsmith.recipes.resolution.boundary_findings",
            "load": "weightsmith.recipes.language.recipe",
            "merged_references": "weightsmith.recipes.language.mentioned",
            "merges_in": "weightsmith.recipes.resolution.formula",
            "numbers_of": "weightsmith.recipes.resolution.free_formulas",
            "MaskNumbers": "weightsmith.recipes.resolution.masks",
            "file_of_values": "weightsmith.recipes.resolution.masks",
            "require_within": "weightsmith.recipes.resolution.masks",
            "open_recipe": "weightsmith.recipes.resolution.filling",
            "opener_of": "weightsmith.recipes.resolution.resolve",
            "other_references": "weightsmith.recipes.language.mentioned",
            "override": "weightsmith.recipes.language.overrides",
            "parse_documents": "weightsmith.recipes.language.document",
            "read_values": "weightsmith.recipes.language.value_files",
            "reference_data": "weightsmith.recipes.language.model_references",
            "refuse_other_kinds": "weightsmith.recipes.language.other_documents",
            "repeated_layers": "weightsmith.recipes.resolution.boundary_findings",
            "rewritten": "weightsmith.recipes.language.document_parts",
            "resolve": "weightsmith.recipes.resolution.resolve",
            "layer_boundaries": "weightsmith.recipes.resolution.boundary_findings",
            "with_numbers": "weightsmith.recipes.resolution.free_formulas",
            "without": "weightsmith.recipes.language.without",
        },
    )
