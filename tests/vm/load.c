/*
 * load OBJECT[=WORD,WORD...]...: loads each program of each BPF object separately into the running
 * kernel, and prints one line per program:
 *
 *   program OBJECT NAME RESULT INSTRUCTIONS MICROSECONDS
 *
 * RESULT is 0 or a negative errno. INSTRUCTIONS is the number that the verifier processed
 * (bpf_prog_info.verified_insns, Linux 5.16). After a refusal the end of the verifier's log follows,
 * each line prefixed with "| ". The words, 64 bits each, are the beginning of the object's read-only
 * data.
 *
 * C and libbpf, linked statically: a guest needs no other file, and it builds in half a second
 * without cargo. Exit status: 0 if all programs load.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_PROGRAMS 64
#define MAX_WORDS 64
#define LOG_BYTES (16u << 20)
#define TAIL_BYTES 3000

static char *verifier_log;

static int print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return 0;
}

static unsigned long long microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

static void set_constants(struct bpf_object *object, const __u64 *words, size_t count)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object) {
		const char *name = bpf_map__name(map);
		size_t length = strlen(name), size = 0;
		void *values;

		if (length < 7 || strcmp(name + length - 7, ".rodata"))
			continue;
		values = (void *)bpf_map__initial_value(map, &size);
		if (values && size >= count * sizeof(*words))
			memcpy(values, words, count * sizeof(*words));
	}
}

static void print_tail(void)
{
	size_t length = strlen(verifier_log);
	char *line = verifier_log + (length > TAIL_BYTES ? length - TAIL_BYTES : 0);

	for (line = strtok(line, "\n"); line; line = strtok(NULL, "\n"))
		printf("| %s\n", line);
}

/* Loads one program of an object, and prints the result. */
static bool load(const char *path, const char *name, const __u64 *words, size_t count)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program, *chosen = NULL;
	struct bpf_prog_info info = {};
	unsigned long long began, took;
	__u32 bytes = sizeof(info);
	const char *file = strrchr(path, '/');
	int result;

	if (!object) {
		printf("program %s %s %d 0 0\n", path, name, -errno);
		return false;
	}
	bpf_object__for_each_program(program, object) {
		bool is_chosen = !strcmp(bpf_program__name(program), name);

		bpf_program__set_autoload(program, is_chosen);
		if (is_chosen)
			chosen = program;
	}
	set_constants(object, words, count);
	verifier_log[0] = 0;
	bpf_program__set_log_buf(chosen, verifier_log, LOG_BYTES);
	began = microseconds();
	result = bpf_object__load(object);
	took = microseconds() - began;
	if (!result && bpf_obj_get_info_by_fd(bpf_program__fd(chosen), &info, &bytes))
		result = -errno;
	printf("program %s %s %d %u %llu\n", file ? file + 1 : path, name, result,
	       info.verified_insns, took);
	if (result)
		print_tail();
	bpf_object__close(object);
	return !result;
}

int main(int count, char **arguments)
{
	bool all = true;

	setvbuf(stdout, NULL, _IOLBF, 0);
	libbpf_set_print(print);
	verifier_log = malloc(LOG_BYTES);
	if (!verifier_log)
		return 1;
	for (int i = 1; i < count; i++) {
		char *path = strtok(arguments[i], "="), *word;
		char *names[MAX_PROGRAMS];
		__u64 words[MAX_WORDS];
		size_t programs = 0, constants = 0;
		struct bpf_program *program;
		struct bpf_object *object;

		while ((word = strtok(NULL, ",")) && constants < MAX_WORDS)
			words[constants++] = strtoull(word, NULL, 0);
		object = bpf_object__open_file(path, NULL);
		if (!object) {
			printf("program %s - %d 0 0\n", path, -errno);
			all = false;
			continue;
		}
		bpf_object__for_each_program(program, object)
			if (programs < MAX_PROGRAMS)
				names[programs++] = strdup(bpf_program__name(program));
		bpf_object__close(object);
		for (size_t n = 0; n < programs; n++) {
			all = load(path, names[n], words, constants) && all;
			free(names[n]);
		}
	}
	return !all;
}
