// How long tests wait for what must come. Whatever a test waits for comes in milliseconds or seconds; a machine with twenty
// other busy threads takes twenty times as long, and nothing may fail for that. Only a test that is stuck waits to the end.
//
//   ZAZEN_TEST_PATIENCE=n   so many times as long, where ZAZEN_TUNING makes everything slow

export const PATIENCE_MILLIS = 600_000 * Number(process.env['ZAZEN_TEST_PATIENCE'] ?? 1);
/** Of a test that does much, one thing after the other. */
export const TEST_PATIENCE_MILLIS = 2 * PATIENCE_MILLIS;
/** Of a whole file, which may have to wait more than once. */
export const FILE_PATIENCE_MILLIS = 3 * PATIENCE_MILLIS;
