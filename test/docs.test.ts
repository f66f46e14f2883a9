// The documents: relative links lead somewhere, and the files that they name exist. Code moves; so must its mentions.

import assert from 'node:assert/strict';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');
const DOCUMENTS = globSync(['*.md', 'docs/**/*.md', 'src/**/*.md', 'test/**/*.md', 'bench/**/*.md'], { cwd: ROOT }).toSorted();

/** Blocks between ``` are examples and output: what looks like a link there is none. */
function withoutCodeBlocks(text: string): string {
  return text.replaceAll(/^```[\s\S]*?^```$/gm, '');
}

/** Targets of `[text](target)` and `![text](target)`. */
function linksOf(text: string): string[] {
  const prose = withoutCodeBlocks(text).replaceAll(/`[^`\n]*`/g, '');
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map((match) => match[1]!);
}

/** Paths from the repository's root in backticks, in prose and tables: `src/cpu/engine.ts`, `docs/decisions/`. */
function pathsOf(text: string): string[] {
  return [...withoutCodeBlocks(text).matchAll(/`((?:src|test|bench|docs|bin|release|\.ci)\/[\w./-]*)`/g)].map((match) => match[1]!);
}

/** The name by which a heading is linked to. */
function anchorOf(heading: string): string {
  return heading.trim().toLowerCase().replaceAll(/[^\p{L}\p{N}\s_-]/gu, '').replaceAll(/\s/g, '-');
}

function anchorsOf(text: string): Set<string> {
  return new Set([...withoutCodeBlocks(text).matchAll(/^#+ (.+)$/gm)].map((match) => anchorOf(match[1]!)));
}

/** What is wrong with a link in `document`, or undefined. */
function judgeLink(document: string, link: string): string | undefined {
  if (/^[a-z][a-z+.-]*:/i.test(link)) return undefined;
  const [path, anchor] = link.split('#') as [string, string | undefined];
  const target = path === '' ? document : join(dirname(document), path);
  if (!existsSync(join(ROOT, target))) return `${document} links to ${link}, which does not exist`;
  if (anchor === undefined || !target.endsWith('.md')) return undefined;
  if (anchorsOf(readFileSync(join(ROOT, target), 'utf8')).has(anchor)) return undefined;
  return `${document} links to ${link}, but ${target} has no such heading`;
}

function problemsOf(document: string, text: string): string[] {
  const links = linksOf(text).flatMap((link) => judgeLink(document, link) ?? []);
  const paths = pathsOf(text).filter((path) => !existsSync(join(ROOT, path)));
  return [...links, ...paths.map((path) => `${document} names ${path}, which does not exist`)];
}

test('links and paths in the documents lead somewhere', () => {
  assert.ok(DOCUMENTS.includes('README.md') && DOCUMENTS.includes(join('docs', 'architecture.md')));
  const problems = DOCUMENTS.flatMap((document) => problemsOf(document, readFileSync(join(ROOT, document), 'utf8')));
  assert.ok(problems.length === 0, `\n${problems.join('\n')}`);
});

test('the rule itself: what it finds', () => {
  const text = 'See [a](nowhere.md), [b](#no-heading), [c](docs/architecture.md) and [d](https://example.org/).\n'
    + '`src/no/such.ts`, `test/docs.test.ts`, `[e](not-a-link.md)`\n```\n[f](example.md) `src/example.ts`\n```\n';
  assert.deepEqual(problemsOf('README.md', text), [
    'README.md links to nowhere.md, which does not exist',
    'README.md links to #no-heading, but README.md has no such heading',
    'README.md names src/no/such.ts, which does not exist',
  ]);
});
