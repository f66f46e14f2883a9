// Strings of the wire: every byte is one character of the same number (0 … 255), so that tokens and values go in and
// out unchanged whatever they hold. Paths are ASCII (path.ts), which this mapping leaves as it is.

export function bytesToString(bytes: Uint8Array): string {
  let text = '';
  for (let i = 0; i < bytes.length; i++) text += String.fromCharCode(bytes[i]!);
  return text;
}

/** @param text characters 0 … 255 only. */
export function stringToBytes(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The strings of a payload that are closed by a NUL; what follows the last NUL is left out. */
export function closedStrings(payload: Uint8Array): string[] {
  const strings: string[] = [];
  let start = 0;
  for (let end = payload.indexOf(0); end >= 0; end = payload.indexOf(0, start)) {
    strings.push(bytesToString(payload.subarray(start, end)));
    start = end + 1;
  }
  return strings;
}

/** Decimal digits only, at most `max`; undefined for anything else. */
export function parseDecimal(text: string, max: number): number | undefined {
  if (!/^[0-9]{1,16}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= max ? value : undefined;
}
