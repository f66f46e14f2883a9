// What the store says of a domain's console (Xen: docs/misc/console.txt, libxl's first console). Linux takes its first
// console from the HVM parameters; these entries are for other front-ends and for tools.

export interface ConsoleEntries {
  readonly domainId: number;
  /** GFN of the console page. */
  readonly gfn: number;
  /** The guest's end of the event channel. */
  readonly port: number;
  /** A terminal that shows the console, if there is one. */
  readonly tty?: string;
}

/** Bytes that a host keeps of a console, as xl says it. */
const LIMIT_BYTES = 1048576;

/** Writes the entries below /local/domain/<id>/console through `write`, parents first. */
export function writeConsoleEntries(entries: ConsoleEntries, write: (path: string, value: string) => void): void {
  const { domainId, gfn, port, tty = '' } = entries;
  const values = {
    'ring-ref': gfn, port, type: 'xenconsoled', limit: LIMIT_BYTES, output: 'pty', tty,
  };
  for (const [name, value] of Object.entries(values)) write(`/local/domain/${domainId}/console/${name}`, String(value));
}
