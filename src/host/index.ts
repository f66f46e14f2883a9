// The package's entry: what a program that embeds Zazen imports.

export { ZazenError } from '../base/errors.ts';
export { buildRoot } from '../guest/build-root.ts';
export type { BuildRootOptions, BuiltRoot } from '../guest/build-root.ts';
export { Host } from './host.ts';
export { formatSize, parseSize } from './size.ts';
export type * from './types.ts';
