/* Runs a model with one input and one output over a sound, sample by sample, as an effect does in an audio callback.
 *
 *     python -c "import rnnfast; rnnfast.Sequential(rnnfast.LSTM(1, 16), rnnfast.Linear(16, 1)).save('model.npz')"
 *     rnnfast export model.npz -o model.c
 *     gcc -std=c11 -O2 -I. examples/c/sound.c model.c -o sound
 *     ./sound in.wav out.wav
 *
 * The sounds are WAV files of 16 bits. Each channel has its own state. Other chunks of the file are copied.
 */
#include "model.h"

#include <stdio.h>
#include <string.h>

_Static_assert(MODEL_INPUTS == 1 && MODEL_OUTPUTS == 1, "the model must map one sample to one sample");

enum { MOST_CHANNELS = 8 };

static unsigned long number(const unsigned char *bytes, int count)
{
    unsigned long value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static void process(model_state *state, unsigned char sample[2])
{
    int integer = (int)number(sample, 2);
    float x = (float)(integer < 32768 ? integer : integer - 65536) / 32768, y;
    model_step(state, &x, &y);
    integer = y >= 1 ? 32767 : y > -1 ? (int)(y * 32767) : -32767; /* NaN gives -32767 */
    sample[0] = (unsigned char)(integer & 255);
    sample[1] = (unsigned char)(integer >> 8 & 255);
}

int main(int argc, char **argv)
{
    static model_state states[MOST_CHANNELS];
    unsigned long channels = 0;
    unsigned char bytes[12], format[16];
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out = in ? fopen(argv[2], "wb") : NULL;
    if (!out) return fprintf(stderr, "usage: sound in.wav out.wav\n"), 2;
    if (fread(bytes, 12, 1, in) != 1 || memcmp(bytes, "RIFF", 4) != 0 || memcmp(bytes + 8, "WAVE", 4) != 0)
        return fprintf(stderr, "%s is not a WAV file\n", argv[1]), 2;
    fwrite(bytes, 12, 1, out);
    for (int i = 0; i < MOST_CHANNELS; i++) model_reset(&states[i]);
    while (fread(bytes, 8, 1, in) == 1) { /* the name and the length of a chunk */
        unsigned long length = number(bytes + 4, 4), samples = 0, begin = 0;
        fwrite(bytes, 8, 1, out);
        if (memcmp(bytes, "fmt ", 4) == 0 && length >= sizeof format) {
            if (fread(format, sizeof format, 1, in) != 1) break;
            fwrite(format, sizeof format, 1, out);
            begin = sizeof format;
            channels = number(format + 2, 2);
            if (number(format, 2) != 1 || number(format + 14, 2) != 16 || channels < 1 || channels > MOST_CHANNELS)
                return fprintf(stderr, "%s has not up to %d channels of 16 bits\n", argv[1], MOST_CHANNELS), 2;
        }
        if (memcmp(bytes, "data", 4) == 0 && channels) samples = length / 2;
        for (unsigned long i = 0; i < samples && fread(bytes, 2, 1, in) == 1; i++) {
            process(&states[i % channels], bytes);
            fwrite(bytes, 2, 1, out);
        }
        for (unsigned long i = begin + 2 * samples; i < length + length % 2 && fread(bytes, 1, 1, in) == 1; i++) fwrite(bytes, 1, 1, out);
    }
    fclose(in);
    return fclose(out) != 0;
}
