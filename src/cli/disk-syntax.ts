// Disks as people write them: xl's syntax (docs/man/xl-disk-configuration.5), for `disk` of a configuration, `--disk` and
// block-attach.
//
//   [target=]PATH [, FORMAT [, VDEV [, ACCESS]]] [, key=value or word]...      web.img,raw,xvda,rw
//   format: raw, layer (if left out: by the name)        access: rw, w, ro, r     vdev: xvda, xvdb, …
//   no-discard: the file keeps the space of what the guest discards
// and Zazen's own: bytes-per-second=SIZE, requests-per-second=N (limits), persistent-grants (docs/block.md)

import { resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { parseSize } from '../host/size.ts';
import type { DiskSpec } from '../host/types.ts';

const POSITIONS = ['target', 'format', 'vdev', 'access'] as const;
type Key = (typeof POSITIONS)[number];
/** Of Xen's own ways to get at a disk, which make no difference here. */
const IGNORED = new Set(['', 'discard', 'direct-io-safe', 'devtype=disk', 'backendtype=phy', 'backendtype=qdisk']);
const READ_ONLY: Readonly<Record<string, boolean>> = { ro: true, r: true, rw: false, w: false };

type LimitName = 'bytesPerSecond' | 'requestsPerSecond';
const LIMITS: Readonly<Record<string, LimitName>> = {
  'bytes-per-second': 'bytesPerSecond', 'requests-per-second': 'requestsPerSecond',
};

function limit(text: string, key: string, value: string): number {
  if (LIMITS[key] === 'bytesPerSecond') return parseSize(value, 'a disk\'s rate');
  if (/^[1-9]\d{0,8}$/.test(value)) return Number(value);
  throw refusal(text, `"${value}" is no number of requests`);
}

/** @param cwd where relative paths start @throws ZazenError ZAZEN_DISK_SPEC */
export function parseDisk(text: string, cwd: string): DiskSpec {
  const given: Partial<Record<Key, string>> = {};
  let position = 0;
  const more: { -readonly [K in 'discard' | 'persistentGrants']?: boolean } & { [K in LimitName]?: number } = {};
  for (const word of text.split(',').map((part) => part.trim())) {
    const [, key, value] = /^(target|format|vdev|access)\s*=\s*(.*)$/.exec(word) ?? [];
    const [, limitKey, limitValue] = /^((?:bytes|requests)-per-second)\s*=\s*(.*)$/.exec(word) ?? [];
    if (key !== undefined) given[key as Key] = value!;
    else if (word === 'no-discard') more.discard = false;
    else if (word === 'persistent-grants') more.persistentGrants = true;
    else if (limitKey !== undefined) more[LIMITS[limitKey]!] = limit(text, limitKey, limitValue!);
    else if (IGNORED.has(word) && (position > 0 || word !== '')) position += word === '' ? 1 : 0;
    else if (position < POSITIONS.length && !word.includes('=')) given[POSITIONS[position++]!] = word;
    else throw refusal(text, `"${word}" is not understood`);
  }
  const { target, format = '', vdev = '', access = 'rw' } = given;
  if (target === undefined || target === '') throw refusal(text, 'it names no file');
  if (format !== '' && format !== 'raw' && format !== 'layer') throw refusal(text, `there is no format "${format}"`);
  const readOnly = Object.hasOwn(READ_ONLY, access) ? READ_ONLY[access] : undefined;
  if (readOnly === undefined) throw refusal(text, `there is no access "${access}"`);
  return {
    path: resolve(cwd, target), ...(format === '' ? {} : { format }), ...(vdev === '' ? {} : { target: vdev }),
    ...(readOnly ? { readOnly } : {}), ...more,
  };
}

function refusal(text: string, what: string): ZazenError {
  return new ZazenError('ZAZEN_DISK_SPEC', `disk "${text}": ${what}`,
    { hint: 'write PATH,FORMAT,VDEV,ACCESS, as in web.img,raw,xvda,rw; format is raw or layer, access rw or ro' });
}
