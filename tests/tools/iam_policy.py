"""Evaluation of an identity-based IAM policy: Allow and Deny statements with wildcards."""

import functools
import re


class PolicyError(ValueError):
    """The policy has an element that this evaluation does not know, so no decision would be trustworthy."""


@functools.lru_cache(maxsize=4096)
def wildcard(pattern, flags=0):
    """`*` matches any text, also `:` and `/`; `?` matches one character."""
    text = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.compile(text, flags | re.DOTALL)


def listed(value):
    return value if isinstance(value, list) else [value]


class Policy:
    def __init__(self, document):
        if not isinstance(document, dict) or set(document) - {"Version", "Id", "Statement"}:
            raise PolicyError("a policy is an object with Version, Id and Statement")
        if document.get("Version") not in ("2012-10-17", "2008-10-17"):
            raise PolicyError(f"unknown Version: {document.get('Version')}")
        self.statements = [self.check(s) for s in listed(document.get("Statement"))]

    @staticmethod
    def check(statement):
        if not isinstance(statement, dict):
            raise PolicyError(f"a statement is not an object: {statement}")
        if unknown := set(statement) - {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource"}:
            # Principal belongs to resource-based policies. A Condition that is ignored would allow or deny too much.
            raise PolicyError(f"not supported in a statement: {', '.join(sorted(unknown))}")
        if statement.get("Effect") not in ("Allow", "Deny"):
            raise PolicyError(f"unknown Effect: {statement.get('Effect')}")
        for name in ("Action", "Resource"):
            if (name in statement) == (f"Not{name}" in statement):
                raise PolicyError(f"a statement needs {name} or Not{name}")
            for pattern in listed(statement.get(name, statement.get(f"Not{name}"))):
                if not isinstance(pattern, str) or not pattern:
                    raise PolicyError(f"{name} is not a text: {pattern!r}")
                if "${" in pattern:
                    raise PolicyError(f"policy variables are not supported: {pattern}")
                if name == "Action" and pattern != "*" and ":" not in pattern:
                    raise PolicyError(f"an action needs the prefix of a service: {pattern}")
                if name == "Resource" and pattern != "*" and not pattern.startswith("arn:"):
                    raise PolicyError(f"a resource is * or begins with arn: {pattern}")
        return statement

    @staticmethod
    def matches(statement, name, value, flags=0):
        positive = name in statement
        patterns = listed(statement[name if positive else f"Not{name}"])
        return any(wildcard(pattern, flags).fullmatch(value) for pattern in patterns) == positive

    def decide(self, action, resource):
        """Returns "allowed", "explicit deny" or "implicit deny"."""
        decision = "implicit deny"
        for statement in self.statements:
            # IAM ignores the case of an action but not that of a resource.
            if self.matches(statement, "Action", action, re.IGNORECASE) and self.matches(statement, "Resource", resource):
                if statement["Effect"] == "Deny":
                    return "explicit deny"
                decision = "allowed"
        return decision

    def decide_some(self, action, prefix):
        """Decides for a request that names no resource: the action on any resource whose ARN begins with `prefix`.

        A Deny counts only if it denies every such resource.
        """
        decision = "implicit deny"
        for statement in self.statements:
            if not self.matches(statement, "Action", action, re.IGNORECASE):
                continue
            if statement["Effect"] == "Deny":
                if "*" in listed(statement.get("Resource", [])):
                    return "explicit deny"
            elif "NotResource" in statement or any(overlaps(p, prefix) for p in listed(statement["Resource"])):
                decision = "allowed"
        return decision


def overlaps(pattern, prefix):
    """Returns whether the pattern can match a text that begins with the prefix."""
    literal = re.split(r"[*?]", pattern)[0]
    return literal.startswith(prefix) or (prefix.startswith(literal) and literal != pattern)
