// The package's entry: what a program that embeds Zazen imports.

export { ZazenError } from '../base/errors.ts';
export { Host } from './host.ts';
export { formatSize, parseSize } from './size.ts';
export type * from './types.ts';
