// `zazen image info|verify`: look at images without any host. What a file says is hostile, also to a terminal.

import { formatSize } from '../host/size.ts';
import { openImage } from '../image/image.ts';
import type { Image } from '../image/image.ts';
import { ZazenError } from '../base/errors.ts';
import type { Arguments } from './arguments.ts';
import { say } from './io.ts';
import type { Io } from './io.ts';
import { formatTable } from './table.ts';
import { JSON_OPTION, printJson } from './verb.ts';
import type { Verb } from './verb.ts';

const FILE = { name: 'FILE' };

const imageInfoVerb: Verb = {
  name: 'image info',
  summary: 'Show what is in an image that save or dump-core made.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: showImage,
};

const imageVerifyVerb: Verb = {
  name: 'image verify',
  summary: 'Read every byte of an image, and of the images that it builds on, and look for damage.',
  positionals: [FILE],
  options: { json: JSON_OPTION },
  run: verifyImage,
};

export const imageVerbs: readonly Verb[] = [imageInfoVerb, imageVerifyVerb];

/** Does not need the parents: whoever looks may not have them. */
async function showImage({ positionals, switches }: Arguments, io: Io): Promise<number> {
  await using image = await openImage(positionals[0]!, { parents: false });
  const facts = collectFacts(image);
  if (switches.has('json')) printJson(io, facts);
  else io.stdout.write(describeFacts(facts));
  return 0;
}

type Facts = ReturnType<typeof collectFacts>;

function collectFacts(image: Image) {
  const { id, createdMillis, parent, domain } = image.header;
  return {
    path: image.path, version: image.version, id, digest: image.digest, createdMillis, fileBytes: image.fileBytes,
    domain, parent, banks: image.banks, pages: image.pageCounts(),
    vcpus: image.vcpus.map(({ pc, sp, pstate }) => ({ pc: hex(pc), sp: hex(sp), pstate: hex(pstate) })),
    sections: [...image.sections].map(([name, bytes]) => ({ name, sizeBytes: bytes.length })),
    vmcoreinfo: image.vmcoreinfo === undefined ? undefined : new TextDecoder().decode(image.vmcoreinfo),
  };
}

const hex = (value: bigint) => `0x${value.toString(16).padStart(16, '0')}`;

/** Control characters of a file do not reach the terminal. */
const harmless = (text: string) => text.replaceAll(/\p{Cc}/gu, '?');

function describeFacts(facts: Facts): string {
  const { domain, parent, pages } = facts;
  const created = new Date(facts.createdMillis);
  return formatTable([
    ['image', harmless(facts.path)],
    ['version', String(facts.version)],
    ['id', facts.id],
    ['created', Number.isNaN(created.getTime()) ? 'unknown' : created.toISOString()],
    ...Object.entries(domain).map(([name, value]) =>
      [harmless(name), harmless(typeof value === 'string' ? value : JSON.stringify(value))] as const),
    ['memory', facts.banks.map(({ guestAddress, sizeBytes }) =>
      `${formatSize(sizeBytes)} at ${hex(BigInt(guestAddress))}`).join('\n')],
    ['pages', `${pages.stored} stored, ${pages.zero} zero, ${pages.parent} in the parent`],
    ['file size', `${facts.fileBytes} bytes with holes`],
    ['parent', parent === undefined ? 'none' : `${harmless(parent.path)}, id ${parent.id}`],
    ['vcpus', facts.vcpus.map(({ pc }) => `pc ${pc}`).join('\n') || 'none'],
    ['state', facts.sections.map(({ name, sizeBytes }) => `${name}: ${sizeBytes} bytes`).join('\n') || 'none'],
  ]);
}

async function verifyImage({ positionals, switches }: Arguments, io: Io): Promise<number> {
  await using image = await openImage(positionals[0]!);
  const started = performance.now();
  const result = await image.verify({ signal: io.signal });
  const millis = performance.now() - started;
  if (result.problemCount > 0) {
    for (const { path, message } of result.problems) say(io, harmless(`image ${path}: ${message}`));
    throw new ZazenError('ZAZEN_IMAGE_CHECKSUM', `image ${image.path}: ${result.problemCount} of its pages are damaged`,
      { hint: 'do not use it; copy it again from where it was good' });
  }
  if (switches.has('json')) printJson(io, { path: image.path, intact: true, ...result, millis });
  else io.stdout.write(`${harmless(image.path)} is intact: ${result.pagesChecked} pages, ${result.bytesRead} bytes\n`);
  return 0;
}
